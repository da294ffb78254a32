"""The code that runs inside the sandbox: the fork server and the processes that it forks.

A process inherits the server's memory and copies each page that it writes to. So nothing here
imports threading, logging or anything else that only the grader's side needs.
"""
