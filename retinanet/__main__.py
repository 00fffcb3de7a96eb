"""python -m retinanet, which torchrun -m needs."""

import sys

from .cli import main

sys.exit(main())
