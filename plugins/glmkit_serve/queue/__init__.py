"""A queue of questions in a database: who asks writes a row, workers write the answer into it.

``glmkit run queue --db URL`` serves it, ``glmkit queue`` looks into it. Importing this module is
free.
"""
