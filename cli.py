"""The `vexpress` command: arguments in, one call out, errors as sentences."""

import sys


def main(argv: list[str] | None = None) -> int:
    return 0


if __name__ == "__main__":
    sys.exit(main())
