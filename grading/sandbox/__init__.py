"""Confined processes that run programs written by a model: limited, isolated and killable.

A `Sandbox` (`sandbox`) starts them. A `Confined` process (`process`) has an empty working directory
and almost no environment; it answers each JSON line on a private socket with another. Its standard
input and output are files in the grader's memory, so its output is read without its cooperation.
The code that runs in the process is in `inside`. This file must import nothing: `inside` is
imported through it.
"""
