"""placeholder"""


def page(payload):
    return ""
