"""``python -m reshard.modelarts``, the boot file of a ModelArts training job, is the command ``reshard modelarts``."""

import sys

from .cli.app import main

if __name__ == "__main__":
    main(["modelarts", *sys.argv[1:]])
