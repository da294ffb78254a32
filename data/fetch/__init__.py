"""Fetch what the benchmark needs: data set, calibration rows, LiveCodeBench's problems, model.

`sources` says what there is and where it is published, `store` reads the lists of MLCommons' store,
`download` gets one file of them, `hub` gets repositories of Hugging Face into its cache.
"""
