"""How much the runtime gives an engine in one call, which engines for fixed sizes are built for."""

CHUNK = 8  # frames per call of the audio projection and the guider, always
WHOLE_AUDIO_SECONDS = 60.0  # speech up to this long is encoded as a whole, as the original does
