"Labels from a machine: two weak networks, each taught with few photographs of one half, label those of the other half"
import shutil,sys
from pathlib import Path
import numpy as np, pandas as pd
from fastcore.script import call_parse
from sesemi_fastai.core import InputError,RunStopped
from sesemi_fastai.data import noisy_table
from sesemi_fastai.predictions import read_predictions
from sesemi_fastai.study import run_missing

teacher = dict(dataset='own', size=64, arch='xresnet18', opt='ranger', bs=64, epochs=40, precision='bf16', workers=0, store='auto', unlabeled='none')

def _lessons(df, n):
    "A table for each teacher: it learns from `n` images of its half, and is asked about all of the other one"
    df = df.drop(columns='is_valid').rename(columns=dict(true='label')).sample(frac=1, random_state=0)
    half = np.arange(len(df)) % 2
    return [pd.concat([df[half == k].head(n).assign(is_valid=False), df[half != k].assign(is_valid=True)]) for k in (0,1)]

def _ask(lessons, out):
    "The class that the other half's teacher takes each training image for"
    for k,o in enumerate(lessons): o.to_csv(out/f'teacher{k}.csv', index=False)
    run_missing({f'teacher{k}':dict(teacher, path=str(out/f'teacher{k}.csv'), seed=k) for k in (0,1)}, out)
    return pd.concat([read_predictions(out/f'teacher{k}/predictions.csv') for k in (0,1)]).set_index('path').predicted

@call_parse
def main(
    path:str, # Folder of Imagenette with noisy_imagenette.csv
    out:str, # New folder, or one of a run that was interrupted
    n:int=1500 # Images that each teacher learns from
):
    "Write photographs, machine.csv with the answers of the teachers as labels, and dealt.csv with the same answers dealt out anew to the images of each class"
    try:
        df,out = noisy_table(path, 0, named=False)[['path','is_valid','true']],Path(out)
        for o in df.path:
            (out/o).parent.mkdir(parents=True, exist_ok=True)
            if not (out/o).exists() or (out/o).stat().st_size != (Path(path)/o).stat().st_size: shutil.copyfile(Path(path)/o, out/o)
        train = df[~df.is_valid]
        said = train.path.map(_ask(_lessons(train, n), out))
    except (InputError,OSError,RunStopped) as e: sys.exit(str(e))
    dealt = said.groupby(train.true).transform(lambda o: np.random.default_rng(0).permutation(o.to_numpy()))
    for name,labels in dict(machine=said, dealt=dealt).items(): df.assign(label=df.true.where(df.is_valid, labels)).to_csv(out/f'{name}.csv', index=False)
    print(pd.crosstab(train.true, said).to_string())
    print(f'{100*(said != train.true).mean():.1f}% of {len(said)} labels are wrong')
