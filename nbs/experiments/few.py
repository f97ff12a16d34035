"A folder as somebody might have it: 2000 photographs of Imagenette, 1000 more for validation, and a table for each share of wrong labels"
import shutil,sys
from pathlib import Path
import pandas as pd
from fastcore.script import call_parse
from sesemi_fastai.core import InputError
from sesemi_fastai.data import noisy_table

@call_parse
def main(
    path:str, # Folder of Imagenette with noisy_imagenette.csv
    out:str # New folder
):
    "Write photographs and tables noise50.csv, noise5.csv and noise0.csv, which have the true labels in a column of their own"
    try: tables,out = {n:noisy_table(path, n, named=False) for n in (50,5,0)},Path(out)
    except InputError as e: sys.exit(str(e))
    few = pd.concat([df.groupby('true').sample(100 if valid else 200, random_state=0) for valid,df in tables[0].groupby('is_valid')])
    try:
        for o in few.path:
            (out/o).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(path)/o, out/o)
    except OSError as e: sys.exit(f'the photographs cannot be copied: {e}')
    for noise,df in tables.items(): df.loc[few.index, ['path','label','is_valid','true']].to_csv(out/f'noise{noise}.csv', index=False)
    print(f"{few.path.str.fullmatch(r'.*/n[0-9]{8}_[0-9]+.JPEG').sum()} of {len(few)} photographs are named as those in the training images of ImageNet")
