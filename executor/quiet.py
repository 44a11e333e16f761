"""Keep the libraries' chatter out of an executor's log. Import it before torch, diffusers, transformers.

torch prints a C++ trace, past `logging`, when a peer is gone, which the log says in one line. The others
note that torchvision is missing (nothing here uses it) and that a prompt was cut (this is said to
who asked for the picture). A user's own settings win.
"""

import os

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
