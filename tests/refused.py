"What two processes are told before they train on something else; started by torchrun in tests/test_distributed.py"
import sys, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
import torch
from fastai.vision.all import (CategoryBlock, DataBlock, ImageBlock, ItemTransform, Learner, RandomSplitter, Resize, accuracy, get_image_files, parent_label)
from fastai.data.load import SkipItemException
from sesemi_fastai.all import ELR, RobustLoss, SESEMI
from sesemi_fastai.distributed import leave_together
from conftest import tiny_model

class Skips(ItemTransform):
    "Leaves out an image of each process, and keeps the batches full"
    order,n = -1,0
    def encodes(self, x):
        self.n += 1
        if self.n == 2: raise SkipItemException()
        return x

def main(path, what):
    skips = [Skips()] if what == 'skips' else []
    dls = DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(.2, seed=0),
                    item_tfms=[*skips, Resize(32)]).dataloaders(path, bs=4 if skips else 40, num_workers=0)
    learn = Learner(dls, tiny_model(), metrics=accuracy, cbs=RobustLoss(ELR()) if skips else SESEMI(bs=2))
    try:
        with learn.torchrun_ctx(), learn.no_bar(), learn.no_logging(): learn.fit(1)
    except Exception as e: print('told', e, flush=True)
    leave_together()

if __name__ == '__main__':
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
