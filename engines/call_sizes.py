"""What a clip may ask for and what the runtime gives an engine in one call, which engines are built for."""

from dataclasses import dataclass

CHUNK = 8  # frames per call of the audio projection and the guider, always
MIN_SIDE, MAX_SIDE = 64, 2048  # pixels of a clip's images
MAX_WINDOW_BATCH = 64
WHOLE_AUDIO_SECONDS = 60.0  # speech up to this long is encoded as a whole, as the original does


def frames_per_call(graph: str) -> int:
    """How many frames a graph gets at once that takes frames one by one."""
    return 1 if graph == "vae_decoder" else CHUNK


@dataclass(frozen=True)
class ClipSizes:
    """What a clip asks of its engines, as far as it is known before any is loaded.

    `denoisers`: the graphs of its steps; `height` and `width`: of latents; `samples`: of speech in the audio encoder's
    longest call, None where it has not been read yet.
    """

    denoisers: frozenset[str]
    height: int
    width: int
    window: int
    window_batch: int
    samples: int | None = None

    def needs(self, graph: str) -> bool:
        """Whether the clip runs this graph."""
        return not graph.startswith("denoiser_") or graph in self.denoisers

    def of(self, graph: str) -> dict[str, int]:
        """The sizes of a graph's symbols, of others as well."""
        sizes = {"h": self.height, "w": self.width, "F": self.window, "B": self.window_batch}
        return sizes | {"N": frames_per_call(graph)} | ({} if self.samples is None else {"S": self.samples})
