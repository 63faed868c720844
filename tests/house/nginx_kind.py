"""The root helper with the kind nginx below a directory of a test: `python -I nginx_kind.py DIR [options]`.

The script is copied to a place of root's, because the helper runs no code that others can change.
"""

from __future__ import annotations

import os
import sys

from latticed import apply
from latticed.plans.kinds import Kinds
from latticed.plans.nginx import NginxKind
from latticed.system.nginx.facts import NginxPlace

if __name__ == "__main__":
    directory = sys.argv[1]
    place = NginxPlace(directory=directory, user="root", certificates=(directory,), files=(directory,))
    again = (sys.executable, "-I", os.path.abspath(__file__), directory)
    sys.exit(apply.main(sys.argv[2:], kinds=Kinds({"nginx": lambda: NginxKind(place)}), command=again))
