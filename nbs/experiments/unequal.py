"Classes of unequal size: of Imagenette's training photographs 900 of one class down to 18 of another, and tables with every label right and with some wrong"
import shutil,sys
from pathlib import Path
import numpy as np, pandas as pd
from fastcore.script import call_parse
from sesemi_fastai.core import InputError
from sesemi_fastai.data import noisy_table
from sesemi_fastai.noise import add_label_noise

@call_parse
def main(
    path:str, # Folder of Imagenette with noisy_imagenette.csv
    out:str # New folder
):
    "Write photographs, 100 of each class for validation, and noise0.csv, noise10.csv and noise30.csv, which also have the true labels"
    try: df,out = noisy_table(path, 0, named=False),Path(out)
    except InputError as e: sys.exit(str(e))
    sizes = dict(zip(np.random.default_rng(0).permutation(sorted(df.true.unique())), np.geomspace(900, 18, 10).round().astype(int)))
    parts = [o.sample(100 if valid else sizes[true], random_state=0) for (valid,true),o in df.groupby(['is_valid','true'])]
    df = pd.concat(parts)[['path','label','is_valid','true']]
    try:
        for o in df.path:
            (out/o).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(path)/o, out/o)
    except OSError as e: sys.exit(f'the photographs cannot be copied: {e}')
    for noise in (0,10,30):
        df.loc[~df.is_valid,'label'] = add_label_noise(df.true[~df.is_valid], noise/100, seed=0)
        df.to_csv(out/f'noise{noise}.csv', index=False)
    print(df[~df.is_valid].groupby('true').size().sort_values(ascending=False).to_dict())
