"Labels from a machine: two weak networks, each taught with few photographs of one half, label those of the other half"
import shutil,sys
from pathlib import Path
import numpy as np, pandas as pd
from fastcore.script import call_parse
from sesemi_fastai.core import InputError,read_table
from sesemi_fastai.data import noisy_table
from sesemi_fastai.predictions import read_predictions

def _lessons(path, out, n):
    "Write photographs and a table for each teacher: it learns from `n` images of its half, and is asked about all of the other one"
    df = noisy_table(path, 0, named=False)[['path','is_valid','true']]
    for o in df.path:
        (out/o).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path/o, out/o)
    df.to_csv(out/'true.csv', index=False)
    train = df[~df.is_valid].drop(columns='is_valid').rename(columns=dict(true='label')).sample(frac=1, random_state=0)
    half = np.arange(len(train)) % 2
    for k in (0,1):
        own,other = train[half == k].head(n),train[half != k]
        pd.concat([own.assign(is_valid=False), other.assign(is_valid=True)]).to_csv(out/f'teacher{k}.csv', index=False)

def _answers(out):
    "Write a table with the answers of the teachers as labels, and one with the same answers dealt out anew to the images of each class"
    said = pd.concat([read_predictions(out/f'teacher{k}/predictions.csv') for k in (0,1)]).set_index('path').predicted
    df = read_table(out/'true.csv')
    asked,dealt = ~df.is_valid,np.random.default_rng(0)
    df['label'] = df.true.where(~asked, df.path.map(said))
    df[['path','label','is_valid','true']].to_csv(out/'machine.csv', index=False)
    df.loc[asked,'label'] = df[asked].groupby('true').label.transform(lambda o: dealt.permutation(o.to_numpy()))
    df[['path','label','is_valid','true']].to_csv(out/'dealt.csv', index=False)
    print(pd.crosstab(df.true[asked], df.label[asked]).to_string())
    print(f'{100*(df.label != df.true)[asked].mean():.1f}% of {asked.sum()} labels are wrong')

@call_parse
def main(
    what:str, # lessons: photographs, teacher0.csv and teacher1.csv. answers: machine.csv and dealt.csv, from the predictions of runs in teacher0 and teacher1
    out:str, # Folder of all that
    path:str=None, # lessons: folder of Imagenette with noisy_imagenette.csv
    n:int=1500 # lessons: images that each teacher learns from
):
    "Write the tables of a data set that a machine has labelled"
    try:
        if what == 'lessons': _lessons(Path(path), Path(out), n)
        else: _answers(Path(out))
    except (InputError,OSError) as e: sys.exit(str(e))
