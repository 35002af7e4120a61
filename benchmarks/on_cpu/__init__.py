"""How fast is it on a CPU, and against what? `cpu.py` in the folder above measures; these are its parts."""
