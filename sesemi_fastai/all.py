"Everything a notebook needs besides `fastai.vision.all`"
from .core import InputError, RunStopped
from .rotation import rotate_batch, rotation_loss, rotation_accuracy
from .model import find_features
from .store import ImageStore
from .batches import StoredImageBlock, StoreDL
from .stream import UnlabeledStream, unlabeled_items, show_rotated_batch
from .callback import SESEMI
from .im2col import Im2col
from .precision import Autocast, best_precision, keep_memory
from .prefetch import Prefetch
from .noise import add_label_noise
from .augment import GammaCorrection, item_tfms
from .data import noise_levels, noisy_table, table_block, table_dls, noisy_imagenette_dls, noisy_imagewoof_dls, imagewang_table, imagewang_dls, show_noisy_batch
from .own import own_table, own_dls
from .tree import write_noisy_tree
from .mini import make_mini, mini_dls
from .arch import make_model
from .optim import optimizers, schedules, ranger_fused, ranger_gc, exportable
from .recipe import recipes
from .items import ItemIndex
from .losses import ELR, GCE, SCE, Bootstrap
from .robust import RobustLoss
from .forward import ForwardCorrection
from .selection import SmallLoss, rejected_items
from .pseudo import FixMatch
from .average import EMA
from .methods import methods, robust_cbs
from .memory import Memorisation
from .labels import LabelReport, average_precision, plot_suspects, read_labels, self_confidence
from .corrections import accepted, add_corrections, corrected
from .cleaner import LabelCleaner
from .predictions import Predictions, plot_confusion, plot_worst, read_predictions
from .steps import StepsPerEpoch, MaxSteps
from .checkpoint import Checkpoint, FiniteLoss
from .weights import export_weights
from .loggers import wandb_callback
from .scan import scan_images
from .record import read_records
from .trust import learned_nothing, number_wrong, share_wrong
from .experiment import train_run, resume_run
from .study import comparison, run_missing, read_study, study_records
from .table import result_table, conditions, paired_difference, confidence_interval, against_plain, published_results
from .curves import plot_curves, save_figure
from .page import write_report
