"""Would another kind of decision at the gates pay? `compare.py` measures it; `forms.py` has them."""
