"""An assignment that grades itself: ten functions that carry the paper, to be written anew. See lab/docs/COURSE.md.

exercises.py     the table: which function, which of its lines, which laws
law.py           what a law is, and how a function is held to it
data.py, kd.py, lamol.py, eval.py, train.py     the laws of the exercises in these files
start.py         the student's folder
grade.py         a folder -> points, each exercise in a process of its own
"""
