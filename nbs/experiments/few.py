"A folder as somebody might have it: 2000 photographs of Imagenette, 1000 more for validation, and a table for each share of wrong labels"
import shutil
from pathlib import Path
import pandas as pd
from fastcore.script import call_parse

@call_parse
def main(
    path:str, # Folder of Imagenette with noisy_imagenette.csv
    out:str # New folder
):
    "Write photographs and tables noise50.csv, noise5.csv and noise0.csv, which have the true labels in a column of their own"
    df,out = pd.read_csv(Path(path)/'noisy_imagenette.csv'),Path(out)
    few = pd.concat([df[df.is_valid == valid].groupby('noisy_labels_0').sample(n, random_state=0) for valid,n in ((False,200),(True,100))])
    for o in few.path:
        (out/o).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(path)/o, out/o)
    for noise in (50,5,0): pd.DataFrame(dict(path=few.path, label=few[f'noisy_labels_{noise}'].where(~few.is_valid, few.noisy_labels_0), is_valid=few.is_valid, true=few.noisy_labels_0)).to_csv(out/f'noise{noise}.csv', index=False)
