"""Sentences to speak, made from lists of words; those held out share no subject with those trained on."""

import numpy as np


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(text.replace("\n", "|").split("|"))


_SUBJECTS = _phrases(
    """his grandmother|the old captain|my younger sister|a quiet farmer|the whole village|our best teacher
that little dog|the morning train|every student|a tired baker|the museum guard|their new neighbour|the tall woman
an honest lawyer|the small orchestra|a busy doctor|the city council|my favourite author|the shy boy|our football team
a travelling salesman|the night nurse|her older brother|the wooden boat|a famous painter"""
)
_HELD_OUT_SUBJECTS = _phrases(
    """the lighthouse keeper|a young violinist|the school choir|my uncle Robert|the postman
two green parrots|an early visitor|the mayor of Oxford"""
)
_VERBS = _phrases(
    """opened|remembered|carried|painted|followed|sold|described|watched|borrowed|repaired|moved|found|loved
counted|forgot|shared|measured|washed|admired|showed us"""
)
_OBJECTS = _phrases(
    """the blue umbrella|a basket of apples|an unusual story|the narrow road|seven heavy boxes|a bowl of soup
the garden gate|some beautiful music|a map of the valley|the empty house|a long letter|all of the pictures
the warm bread|our old piano|a box of oranges|the yellow flowers|a cup of tea|the broken window|three more questions
an open fire"""
)
_PLACES = _phrases(
    """near the river|before lunch|in the middle of the night|without a word|on Monday morning|with a smile
behind the church|after the rain|at the end of summer|for almost an hour|under the bridge|in a very good mood
when nobody was looking|as fast as possible|along the beach|for the first time"""
)
_TEMPLATES = (
    "{subject} {verb} {object} {place}.",
    "{place}, {subject} {verb} {object}.",
    "Why do you think {subject} {verb} {object}?",
    "{subject} {verb} {object}, and we were all amazed.",
    "I heard that {subject} {verb} {object} {place}.",
    "Oh no, {subject} {verb} {object} again!",
    "Maybe {subject} only {verb} {object} {place}.",
    "Please tell them how {subject} {verb} {object}.",
)


def sentence(number: int, *, held_out: bool) -> str:
    """Sentence `number` (0, 1, ...) of the training or the held-out texts."""
    rng = np.random.default_rng([number, int(held_out), 0x7E])
    subjects = _HELD_OUT_SUBJECTS if held_out else _SUBJECTS
    text = _TEMPLATES[number % len(_TEMPLATES)].format(
        subject=subjects[rng.integers(len(subjects))],
        verb=_VERBS[rng.integers(len(_VERBS))],
        object=_OBJECTS[rng.integers(len(_OBJECTS))],
        place=_PLACES[rng.integers(len(_PLACES))],
    )
    return text[0].upper() + text[1:]
