"""Runtime: portrait, speech and key points in, video frames out. Never imports torch."""
