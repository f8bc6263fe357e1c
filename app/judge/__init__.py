"""What may be said of descriptions without a model: flags of each text, and recall of the candidates.

Plain values in, plain values out: nothing here knows a pair, a row or a file.
"""
