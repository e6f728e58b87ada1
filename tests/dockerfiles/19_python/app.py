import platform
import sys

print(sys.argv[1], platform.python_implementation())
