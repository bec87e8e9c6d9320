"""The study of AOT in log-linear worlds."""
