"Studies on Ray"
import json, os, subprocess, sys
from pathlib import Path
import pytest
from sesemi_fastai import cluster
from sesemi_fastai.core import InputError
from test_cli import run
from test_study import six

@pytest.mark.cell('Distributed', 'a study on a Ray cluster of two nodes, one of them killed in the middle of a run')
def test_two_nodes_one_killed(tmp_path):
    res = subprocess.run([sys.executable, Path(__file__).parent/'two_nodes.py', tmp_path], capture_output=True, text=True, timeout=900,
                         env={**os.environ, 'OMP_NUM_THREADS':'1'})
    assert res.returncode == 0, res.stdout[-2000:]+res.stderr[-2000:]
    o = json.loads(res.stdout.splitlines()[-1])
    assert o['killed'] and len(o['under_way']) >= 2
    assert o['status'] == ['done']*3 and o['epochs'] == [12]*3
    assert '3 of 3 runs to train, on 2 machines' in res.stdout and '3/3 ' in res.stdout

def test_ray_is_named_if_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'ray', None)
    (tmp_path/'s.toml').write_text(six)
    res = run('sesemi-study', 'run', tmp_path/'s.toml', '--engine', 'ray')
    assert res.returncode == 2 and "pip install 'sesemi_fastai[ray]'" in res.stderr

def test_mistakes_on_ray_get_one_line(tmp_path):
    "An address where nothing answers; more CPUs than there are; data that are not there. In a process of their own, which Ray may fill with threads"
    code = f'''
import sys
sys.argv = ['sesemi-study']
from sesemi_fastai.cluster import run_on_ray
from sesemi_fastai.core import InputError
run = dict(dataset='own', path='nowhere')
for runs,kw in [({{'a':run}}, dict(cpus=10**4)), ({{'a':run}}, {{}}), ({{'a':{{}}}}, dict(address='127.0.0.1:1'))]:
    try: run_on_ray(runs, {str(tmp_path)!r}, bar=False, **kw)
    except InputError as e: print('told:', e)
'''
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=300,
                         env={**os.environ, 'RAY_raylet_start_wait_time_s':'30'})
    told = [o for o in res.stdout.splitlines() if o.startswith('told:')]
    assert len(told) == 3, res.stdout[-1500:]+res.stderr[-1500:]
    assert 'no machine of the cluster has 10000 CPUs' in told[0] and 'nowhere' in told[1] and 'no Ray cluster answers at 127.0.0.1:1' in told[2]
