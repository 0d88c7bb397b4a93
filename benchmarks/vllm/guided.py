"""placeholder"""


def run(setting):
    raise NotImplementedError
