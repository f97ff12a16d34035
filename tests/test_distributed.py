"Two processes on this machine train as one; gloo on a CPU, nccl where there are two GPUs"
import json, os, subprocess, sys
from pathlib import Path
import pytest, torch
from fastai.vision.all import get_image_files
from sesemi_fastai.mini import make_mini
from test_cli import BIN, small

here = Path(__file__).parent

def torchrun(*args, **kwargs):
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'PYTHONPATH':f'{here}:{here.parent}', 'CUDA_VISIBLE_DEVICES':''}
    return subprocess.run([BIN/'torchrun', '--standalone', '--nproc_per_node', '2', *map(str, args)], capture_output=True, text=True, env=env, timeout=120, **kwargs)

@pytest.mark.cell('Distributed', 'gradients of all parameters, the rotation head included, and the targets of ELR agree between ranks; the unlabeled stream is shared out without overlap')
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
    assert a['grads'].shape[0] == 2*(3 if accumulate else 6)

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

@pytest.mark.cell('Distributed', 'a mistake under torchrun is one line, too')
def test_mistake_under_torchrun():
    res = torchrun('--no-python', BIN/'sesemi-train', '--dataset', 'mini', *small)
    assert 'several processes need --path' in res.stderr
