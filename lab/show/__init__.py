"""The page of each of the six files: it shows the file's concept at work, on the tiny model of lab/assets.

python model.py, python data.py, python kd.py, python lamol.py, python eval.py
"""
