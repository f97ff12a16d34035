"Everything a notebook needs besides `fastai.vision.all`"
from .core import InputError, RunStopped
from .rotation import *
from .model import *
from .store import ImageStore
from .batches import StoredImageBlock, StoreDL
from .stream import *
from .callback import *
from .precision import Autocast, best_precision
from .prefetch import Prefetch
from .noise import *
from .augment import GammaCorrection, item_tfms
from .data import *
from .own import *
from .tree import write_noisy_tree
from .mini import make_mini, mini_dls
from .arch import make_model
from .optim import optimizers, schedules, ranger_fused, ranger_gc, exportable
from .recipe import recipes
from .items import ItemIndex
from .robust import RobustLoss, ELR, GCE, SCE, Bootstrap, ForwardCorrection
from .selection import SmallLoss, rejected_items
from .pseudo import FixMatch
from .average import EMA
from .methods import robust_cbs
from .memory import Memorisation
from .labels import LabelReport, average_precision, plot_suspects, read_labels, self_confidence
from .corrections import accepted, corrected
from .cleaner import LabelCleaner
from .predictions import Predictions, plot_confusion, plot_worst
from .steps import StepsPerEpoch, MaxSteps
from .checkpoint import Checkpoint, FiniteLoss
from .weights import export_weights
from .loggers import wandb_callback
from .scan import scan_images
from .record import read_records
from .experiment import train_run, resume_run
from .study import comparison, run_missing, read_study, study_records
from .table import result_table, paired_difference, against_plain, published_results
from .curves import plot_curves, save_figure
from .page import write_report
