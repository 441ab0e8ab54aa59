"""Words as English has them."""


def noun(number: int, singular: str, plural: str = "") -> str:
    """The noun that goes with a number of things: "lane" or "lanes".

    Args:
      plural: where that is not the singular and an s.
    """
    return singular if number == 1 else plural or singular + "s"


def counted(number: float, singular: str, plural: str = "", form: str = ",") -> str:
    """The number and its noun: "1 lane", "2 lanes", "1,000 lanes".

    Args:
      plural: as in `noun`.
      form: of the number, as `format` takes it.
    """
    text = format(number, form)
    return f"{text} {noun(1 if text == '1' else 2, singular, plural)}"
