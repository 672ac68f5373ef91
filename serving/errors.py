"""Why a request got no clip."""

from vexpress_trt.serving.protocol import refusal


class Refusal(Exception):
    """A request that ends without its clip: one of the protocol's codes, and a sentence for whoever asked."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence

    @property
    def text(self) -> str:
        """As it travels, in UTF-8: half a surrogate pair, which JSON can name, is written out."""
        return refusal(self.code, self.sentence).encode(errors="backslashreplace").decode()
