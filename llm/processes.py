"""The processes of one launch (torchrun, accelerate launch): how they part."""


def leave() -> None:
    """End the threads of the process group, if there is one, while there is an interpreter.

    A thread of gloo may be slower than the process that it works for: it lets go of the last
    message while Python is taken down, asks for the interpreter's lock, is ended instead, and takes
    the process with it (SIGABRT, "terminate called without an active exception"). After an error
    the threads may wait for another process, for as long as their patience: then leave them alone.
    """
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
