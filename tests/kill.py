"Kill a run with SIGKILL again and again, and see whether it ends as if nothing had happened"
import contextlib, io, json, os, random, signal, sys, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
import torch
from fastai.vision.all import load_learner
from sesemi_fastai.experiment import resume_run, train_run
from sesemi_fastai.mini import make_mini

torch.set_num_threads(1)
settings = dict(dataset='mini', noise=50, size=32, arch='xresnet10_half', bs=16, workers=0, epochs=6, rampup=3., export=True, bar=False)

def child(f):
    "Process id of a process that runs `f`; forked, so that it need not import anything"
    if pid := os.fork(): return pid
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()): f()
        status = 0
    except BaseException as e:
        print(f'run failed: {e}', file=sys.stderr)
        status = 1
    os._exit(status)

def ended(pid):
    "Exit status of a process, None while it runs"
    done,status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None

def is_writing(out): return any((out/'checkpoints').glob('.fit-*'))

def kill_at(pid, out, delay, while_writing):
    "SIGKILL after `delay` seconds, or from then on at the next moment in which a checkpoint is being written; False if the run was quicker"
    began = time.time()
    while time.time()-began < delay or (while_writing and not is_writing(out)):
        if (status := ended(pid)) is not None:
            assert status == 0, 'a run that went on has failed'
            return False
        time.sleep(.0005 if while_writing else .002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True

def weights(out): return load_learner(out/'export.pkl').model.state_dict()
def history(out): return [{k:v for k,v in h.items() if k != 'seconds'} for h in json.loads((out/'record.json').read_text())['history']]

def torment(kills, seed=0, say=print):
    "Kill one run `kills` times, then let it end; compare it with a run in peace"
    rng,tally = random.Random(seed),dict(kills=0, while_writing=0, epochs_kept=[])
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        path = str(make_mini(d/'mini', 120, 20))
        began = time.time()
        assert os.waitpid(child(lambda: train_run(path=path, out=str(d/'whole'), **settings)), 0)[1] == 0
        seconds,out = time.time()-began,d/'killed'
        go = lambda: resume_run(out, bar=False) if (out/'checkpoints/args.json').exists() else train_run(path=path, out=str(out), **settings)
        while tally['kills'] < kills:
            if (out/'export.pkl').exists() and not (out/'checkpoints').exists(): # it has ended: torment another one
                check(d/'whole', out)
                out = d/f'killed{tally["kills"]}'
            if kill_at(child(go), out, rng.uniform(0, .5*seconds), while_writing=rng.random() < .4):
                tally['kills'] += 1
                tally['while_writing'] += is_writing(out)
                tally['epochs_kept'].append(max((int(o.stem[-4:]) for o in (out/'checkpoints').glob('fit-*.pth')), default=0))
                say(f"kill {tally['kills']}/{kills}, epochs kept: {tally['epochs_kept'][-1]}", flush=True)
        assert os.waitpid(child(go), 0)[1] == 0, 'the last run did not end well'
        check(d/'whole', out)
    return tally

def check(whole, killed):
    a,b = weights(whole),weights(killed)
    assert all(torch.equal(a[k], b[k]) for k in a), 'weights differ'
    assert history(whole) == history(killed), 'histories differ'

def main(kills=20, seed=0):
    tally = torment(kills, seed)
    print(f"{tally['kills']} kills with SIGKILL, {tally['while_writing']} of them while a checkpoint was written: "
          "every run ended with the weights and the history of an undisturbed one, bit for bit")

if __name__ == '__main__': main(*map(int, sys.argv[1:]))
