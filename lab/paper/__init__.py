"""The paper's experiments and the comparison on toy tasks: runs, tables, figures, claims, costs.

    __main__.py       the command line, `python -m lab.paper`
    experiments.py    what stands behind each table and figure: rows, their runs, their numbers
    runs.py           a run's options; how runs are made and found again
    numbers.py        from the files of runs to numbers
    tables.py         text, Markdown, CSV
    figures.py        Figures 3 to 5
    claims.py         what the text claims, judged on the paper's numbers and on ours
    toy.py            the comparison of all methods on toy tasks
    cost.py           what the experiments should cost on a GPU: a prediction
    published.json    the paper's numbers

`python -m lab.paper table4` shows a table.
"""
