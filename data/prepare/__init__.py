"""Build the benchmark's data set from the public data sets that it consists of.

    python -m data.prepare --model DIR --output-file data/deepseek_r1_4388.pkl

`sources` finds and reads the files, `formats` writes prompts, `build` chooses rows and makes the
data set, `like` compares it with an official file, and `subset` draws smaller sets. Nothing of the
sources' texts is in this tree: the examples that some prompts begin with are recognised in the
sources by their hashes. docs/data.md tells what is known of the official file, and what is not.
"""
