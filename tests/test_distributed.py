"Two processes on this machine train as one; gloo on a CPU, nccl where there are two GPUs"
import json, os, subprocess, sys
from pathlib import Path
import pytest, torch
from fastai.vision.all import load_learner
from sesemi_fastai.mini import make_mini
from test_cli import BIN, small

here = Path(__file__).parent

def torchrun(*args, **kwargs):
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'PYTHONPATH':f'{here}:{here.parent}', 'CUDA_VISIBLE_DEVICES':''}
    return subprocess.run([BIN/'torchrun', '--standalone', '--nproc_per_node', '2', *map(str, args)], capture_output=True, text=True, env=env,
                          timeout=120, **kwargs)

@pytest.mark.cell('Distributed', 'gradients of all parameters, the rotation head included, and the targets of ELR agree between ranks; the '
                                 'unlabeled stream is shared out without overlap')
@pytest.mark.parametrize('bn,accumulate', [('separate',0), ('joint',1)])
def test_two_processes_train_as_one(image_folder, tmp_path, bn, accumulate):
    res = torchrun(here/'two_ranks.py', image_folder, tmp_path/'out.pt', bn, accumulate)
    assert res.returncode == 0, res.stderr[-3000:]
    a,b = torch.load(tmp_path/'out.pt', weights_only=True)
    for k in ('grads','model','head','targets'): assert torch.equal(a[k], b[k]), k
    assert (a['targets'].sum(1) > 0).all() and a['as_given'] == b['as_given'] and all(0 <= o <= 1 for o in a['as_given'])
    assert a['grads'].abs().sum(1).min() > 0 and a['values'] == b['values']
    assert not set(a['files']) & set(b['files']) and len(a['files'])+len(b['files']) == 48
    assert a['steps'] == 2*6 # 48 images in steps of 2x4
    assert a['passes'] == b['passes'] == pytest.approx(2) # counted over both processes
    assert a['grads'].shape[0] == 2*(3 if accumulate else 6)

@pytest.mark.cell('Distributed', 'the gradient of the rotation head is that of one process on both shares')
def test_gradient_is_that_of_both_shares(image_folder, tmp_path):
    "Each process's own gradient before averaging, from the record of both, averages to the one that both step with"
    res = torchrun(here/'two_ranks.py', image_folder, tmp_path/'out.pt', 'separate', 0)
    assert res.returncode == 0, res.stderr[-3000:]
    a,b = torch.load(tmp_path/'out.pt', weights_only=True)
    assert not torch.equal(a['own_head'], b['own_head'])
    torch.testing.assert_close((a['own_head']+b['own_head'])/2, a['head_grads'], atol=1e-7, rtol=1e-5)

@pytest.mark.cell('Distributed', 'a skipped image, and batches that one process alone cannot fill, are told')
@pytest.mark.parametrize('what,says', [('skips','of the training set was skipped'), ('few','of each process do not fill one batch of 40')])
def test_two_processes_are_told(image_folder, what, says):
    "Where indices would be of other images, or nothing would be trained"
    res = torchrun(here/'refused.py', image_folder, what)
    assert res.stdout.count('told') == 2 == res.stdout.count(says), res.stdout+res.stderr[-3000:]

@pytest.mark.cell('Resume', 'under torchrun: two processes go on as two')
def test_resume_under_torchrun(tmp_path):
    mini,args = make_mini(tmp_path/'mini', 120, 20),['--no-python', BIN/'sesemi-train']
    options = ['--path', mini, '--epochs', 3, '--export', *small]
    assert torchrun(*args, *options, '--out', tmp_path/'whole').returncode == 0
    res = torchrun(here/'stops_early.py', *options, '--out', tmp_path/'y')
    assert res.returncode != 0 and (tmp_path/'y/checkpoints').exists()
    res = torchrun(*args, '--resume', tmp_path/'y')
    assert res.returncode == 0, res.stderr[-3000:]
    a,b = (load_learner(tmp_path/o/'export.pkl').model.state_dict() for o in ('whole','y'))
    assert all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.cell('Distributed', 'sesemi-train under torchrun: one record that counts the images of all processes')
def test_command_under_torchrun(tmp_path):
    mini = make_mini(tmp_path/'mini', 120, 20)
    res = torchrun('--no-python', BIN/'sesemi-train', '--path', mini, '--epochs', 2, '--export', '--out', tmp_path/'x', *small)
    assert res.returncode == 0, res.stderr[-3000:]
    lines = [o for o in res.stdout.splitlines() if o.startswith('{')]
    assert len(lines) == 1
    record = json.loads((tmp_path/'x/record.json').read_text())
    assert record == json.loads(lines[0]) and record['status'] == 'done' and record['processes'] == 2
    assert record['images'] == 2*2*3*(16+16) and record['labelled_passes'] == 2*2*3*16/120 # two epochs, two processes, three full batches of their 60 images
    assert (tmp_path/'x/export.pkl').exists() and not (tmp_path/'x/checkpoints').exists()

@pytest.mark.cell('Distributed', 'a mistake under torchrun is told in our line')
def test_mistake_under_torchrun():
    res = torchrun('--no-python', BIN/'sesemi-train', '--dataset', 'mini', *small)
    assert 'several processes need --path' in res.stderr

@pytest.mark.cell('Distributed', 'methods that keep something of each image, and average weights: selection, pseudo-labels, rejected '
                                 'images in the stream, the label report')
@pytest.mark.parametrize('robust,unlabeled', [('fixmatch','rejected'), ('auto','train')])
def test_methods_under_torchrun(tmp_path, robust, unlabeled):
    from sesemi_fastai.labels import read_labels
    mini = make_mini(tmp_path/'mini', 120, 20)
    res = torchrun('--no-python', BIN/'sesemi-train', '--path', mini, '--epochs', 3, '--robust', robust, '--unlabeled', unlabeled,
                   '--unlabeled-bs', 2, '--out', tmp_path/'r', *small)
    assert res.returncode == 0, res.stderr[-3000:]
    record,df = json.loads((tmp_path/'r/record.json').read_text()),read_labels(tmp_path/'r')
    assert record['processes'] == 2 and 0 < record['label_precision'] < 1 and all(0 <= o['changed'] <= 1 for o in record['history'])
    assert robust != 'auto' or all(0 <= o['wrong_labels'] <= 1 for o in record['history'])
    assert len(df) > 110 and df.path.is_unique and df.filter(like='p:').sum(axis=1).between(.99, 1.01).all()
