"""The denoiser as a GPU likes it: pixels as rows of channels from end to end, and few passes over memory."""
