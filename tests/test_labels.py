"Suspicious labels: from a run to a list, to corrections by threshold or by eye, and back into training"
import json, os, shutil, socket, subprocess, sys, time, urllib.request
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from sklearn.metrics import average_precision_score
from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, ImageDataLoaders, Learner, Resize, accuracy, xresnet18
from sesemi_fastai import labels
from sesemi_fastai.average import EMA
from sesemi_fastai.core import InputError
from sesemi_fastai.losses import ELR
from sesemi_fastai.data import noisy_table, table_dls
from sesemi_fastai.corrections import corrected
from sesemi_fastai.experiment import train_run
from sesemi_fastai.trust import learned_nothing
from sesemi_fastai.labels import LabelReport, average_precision, cleanlab_of, margins, read_labels, self_confidence, suspects
from sesemi_fastai.memory import Memorisation
from sesemi_fastai.mini import mini_dls
from sesemi_fastai.predictions import Predictions
from sesemi_fastai.record import read_record
from sesemi_fastai.robust import RobustLoss
from test_callback import fit
from test_cli import BIN, last, run, small
from test_resume import mini

@pytest.fixture(scope='module')
def trained(mini, tmp_path_factory):
    "A run on the drawn images that has left its list"
    out = tmp_path_factory.mktemp('run')/'r'
    res = run('sesemi-train', '--path', mini, '--epochs', 2, '--unlabeled', 'none', '--out', out, *small)
    assert res.returncode == 0, res.stderr
    return out

def table_of(mini): return noisy_table(mini, 50) # what the recipe takes for this data set

@pytest.mark.cell('Suspicious labels', 'every training image is in the list of a run, with the labels that training saw')
def test_list_of_a_run(trained, mini):
    df,table = read_labels(trained),table_of(mini)
    given = table[~table.is_valid].set_index('path').label
    assert set(df.path) <= set(given.index) and (df.label == df.path.map(given)).all() and (df.label != df.suggested).all()
    assert df.score.is_monotonic_decreasing and df.score.between(0, 1).all()
    assert df.filter(like='p:').sum(axis=1).between(.99, 1.01).all()

@pytest.mark.cell('Suspicious labels', "cleanlab's default on the same predictions; without the true labels or the library there is one line")
def test_cleanlab_ranks_the_same_probabilities(trained):
    pytest.importorskip('cleanlab')
    df = read_labels(trained)
    np.testing.assert_allclose(cleanlab_of(df), self_confidence(df), atol=2e-3)
    res = run('sesemi-labels', trained, '--n', 3, '--cleanlab')
    assert res.returncode == 0 and 'cleanlab' in res.stdout.splitlines()[0]
    with pytest.raises(InputError, match='not known'): average_precision(df.drop(columns='true', errors='ignore'))

def test_estimate_of_the_training_is_told(trained, mini, tmp_path):
    assert 'the training took' not in run('sesemi-labels', trained).stdout # cross-entropy makes none
    for f in trained.glob('*'):
        if f.is_file(): shutil.copy(f, tmp_path)
    record = json.loads((tmp_path/'record.json').read_text())
    record['history'][-1]['wrong_labels'] = .25
    (tmp_path/'record.json').write_text(json.dumps(record))
    n = len(read_labels(trained))
    for where in (tmp_path, tmp_path/'labels.csv'):
        assert f'the training took about 25% of the labels to be wrong, {n/4:,.0f} of {n}: a rough estimate' in run('sesemi-labels', where).stdout
    (tmp_path/'record.json').write_text('{')
    assert run('sesemi-labels', tmp_path).returncode == 0

def test_average_precision_by_hand():
    df = pd.DataFrame(dict(label=list('aabb'), true=list('abba'), score=[.9,.8,.2,.1]))
    assert average_precision(df) == pytest.approx((1/2 + 2/4)/2)

@pytest.mark.cell('Suspicious labels', 'accepted suggestions are dropped or relabelled in the next training, and the record says so')
@pytest.mark.parametrize('action', ['drop','relabel'])
def test_from_list_to_training(trained, mini, tmp_path, action):
    df = read_labels(trained)
    threshold = float(df.score.iloc[3])
    res = run('sesemi-labels', trained, '--accept', threshold, '--action', action, '--corrections', tmp_path/'c.csv')
    fixes = pd.read_csv(tmp_path/'c.csv', dtype=str)
    assert res.returncode == 0 and len(fixes) >= 4 and (fixes.action == action).all(), res.stderr
    res = run('sesemi-train', '--path', mini, '--epochs', 1, '--unlabeled', 'none', '--corrections', tmp_path/'c.csv', '--out', tmp_path/'again', *small)
    assert res.returncode == 0, res.stderr
    assert last(res)['method'] == 'corrected labels' and last(res)['config']['corrections'].startswith('c.csv [')
    again,table = read_labels(tmp_path/'again'),table_of(mini)
    given,left = table.set_index('path').label,corrected(table, fixes)
    assert last(res)['data']['wrong_labels'] == pytest.approx((left.label != left.true)[~left.is_valid].mean(), abs=1e-4)
    if action == 'drop': assert not set(fixes.path) & set(again.path) and last(res)['data']['train_images'] == (~table.is_valid).sum()-len(fixes)
    else:
        now = again.set_index('path').label
        for o in fixes.itertuples():
            if o.path in now: assert now[o.path] == o.new_label != given[o.path]

def test_so_many_suggestions(trained, tmp_path):
    res = run('sesemi-labels', trained, '--accept-top', 7, '--corrections', tmp_path/'c.csv')
    assert res.returncode == 0 and pd.read_csv(tmp_path/'c.csv').path.tolist() == read_labels(trained).path.head(7).tolist()
    for args in (['--accept-top',7,'--accept',.9], ['--accept-top',-1], ['--accept-top',10**6], ['--accept-top','many'], ['--accept-top',2.5]):
        res = run('sesemi-labels', trained, *args)
        assert res.returncode == 2 and len(res.stderr.strip().splitlines()) == 1, res.stderr

def test_as_many_as_the_training_took_to_be_wrong(trained, tmp_path):
    res = run('sesemi-labels', trained, '--accept-top', 'auto')
    assert res.returncode == 2 and 'made no estimate: methods auto and forward do' in res.stderr
    shutil.copytree(trained, tmp_path/'run')
    record = json.loads((trained/'record.json').read_text())
    record['history'][-1]['wrong_labels'] = .1
    chance = max(o['valid'] for o in record['classes'].values())/sum(o['valid'] for o in record['classes'].values())
    (tmp_path/'run/record.json').write_text(json.dumps({**record, 'accuracy':chance}))
    res = run('sesemi-labels', tmp_path/'run', '--accept-top', 'auto')
    assert res.returncode == 2 and 'learned nothing that chance does not explain' in res.stderr and not (tmp_path/'run/corrections.csv').exists()
    assert 'the list says little' in run('sesemi-labels', tmp_path/'run').stdout
    record['accuracy'] = .9
    (tmp_path/'run/record.json').write_text(json.dumps(record))
    assert run('sesemi-labels', tmp_path/'run', '--accept-top', 'auto').returncode == 0
    assert len(pd.read_csv(tmp_path/'run/corrections.csv')) == round(.1*len(read_labels(trained)))
    (tmp_path/'run/corrections.csv').unlink()
    record['history'][-1]['wrong_labels'] = 0.
    (tmp_path/'run/record.json').write_text(json.dumps(record))
    res = run('sesemi-labels', tmp_path/'run', '--accept-top', 'auto')
    assert res.returncode == 2 and 'took no label to be wrong' in res.stderr and not (tmp_path/'run/corrections.csv').exists()
    res = run('sesemi-labels', tmp_path/'run', '--accept', 1)
    assert res.returncode == 0 and 'nothing is written' in res.stdout and not (tmp_path/'run/corrections.csv').exists()
    record['history'][-1]['wrong_labels'] = .8
    (tmp_path/'run/record.json').write_text(json.dumps(record))
    res = run('sesemi-labels', tmp_path/'run', '--accept-top', 'auto')
    assert res.returncode == 2 and 'took about 80% of the labels to be wrong' in res.stderr
    (tmp_path/'run/checkpoints').mkdir()
    assert run('sesemi-labels', tmp_path/'run').returncode == 0 # somebody's own folder
    (tmp_path/'run/checkpoints/args.json').write_text('{}')
    (tmp_path/'run/record.json').write_text(json.dumps({**record, 'status':'running'}))
    res = run('sesemi-labels', tmp_path/'run')
    assert res.returncode == 2 and 'is not finished: sesemi-train --resume' in res.stderr

@pytest.mark.parametrize('make', [LabelReport, Memorisation, EMA, Predictions, lambda: RobustLoss(ELR())],
                         ids=['LabelReport','Memorisation','EMA','Predictions','RobustLoss'])
def test_one_of_a_kind_in_a_fit(make_learn, make):
    "And the Learner finds the one that is left by its name again, which fastai forgets"
    learn = fit(make_learn(cbs=make()))
    cb = learn.cbs[-1]
    with pytest.raises(InputError, match=f'more than one {type(cb).__name__}'): fit(learn, cbs=make())
    assert not hasattr(learn, cb.name)
    assert getattr(fit(learn), cb.name) is cb

def test_the_cleaner_outside_of_a_notebook(trained, mini):
    pytest.importorskip('ipywidgets')
    code = f"from sesemi_fastai.all import *\nLabelCleaner(read_labels({str(trained)!r}), {str(mini)!r})"
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert res.stderr.strip().endswith('InputError: LabelCleaner is a widget, for a notebook'), res.stderr

def test_two_kinds_of_a_kind(make_learn):
    class Mine(RobustLoss): pass
    class Yours(RobustLoss): pass
    with pytest.raises(InputError, match='more than one RobustLoss'): fit(make_learn(cbs=[Mine(ELR()), Yours(ELR())]))

@pytest.mark.parametrize('classes,nothing', [({'a':(95,95),'b':(5,4)}, False), ({'a':(19,19),'b':(1,1)}, False), ({'a':(95,95),'b':(5,0)}, True),
    ({'a':(50,29),'b':(50,30)}, True), ({'a':(50,31),'b':(50,31)}, False), ({str(i):(8,1) for i in range(10)}, True), ({'a':(50,50)}, False), ({}, False)])
def test_a_run_as_good_as_chance(tmp_path, classes, nothing):
    (tmp_path/'record.json').write_text(json.dumps(dict(classes={k:dict(train=9, valid=n, right=r) for k,(n,r) in classes.items()},
        accuracy=sum(r for _,r in classes.values())/max(1, sum(n for n,_ in classes.values())))))
    assert bool(learned_nothing(tmp_path)) == nothing

@pytest.mark.cell('Suspicious labels', 'nobody reads the output any more, as behind head: a quiet end with status 141')
def test_written_though_nobody_reads(trained, tmp_path):
    "as with `| head -1`, whose end may come first"
    res = unread('sesemi-labels', trained, '--accept-top', '7', '--corrections', tmp_path/'c.csv')
    assert res.returncode == 141 and not any(o in res.stderr for o in ('Broken pipe','Traceback','Exception')), res.stderr
    assert len(pd.read_csv(tmp_path/'c.csv')) == 7

def unread(*args):
    "A command whose output nobody reads"
    r,w = os.pipe()
    os.close(r)
    try: return subprocess.run([BIN/args[0], *args[1:]], stdout=w, stderr=subprocess.PIPE, text=True)
    finally: os.close(w)

def test_a_finished_run_that_nobody_reads_has_nothing_to_go_on_with(trained):
    res = unread('sesemi-train', '--resume', trained)
    assert res.returncode == 141 and 'validation accuracy' in res.stderr and 'go on with' not in res.stderr, res.stderr

def test_images_that_are_not_listed(trained):
    n = json.loads((trained/'record.json').read_text())['data']['train_images']-len(read_labels(trained))
    assert n == 1 and '1 training images were in no batch' in run('sesemi-labels', trained).stdout

def test_decisions_survive_the_same_command(trained, mini, tmp_path):
    assert run('sesemi-labels', trained, '--accept-top', 3, '--corrections', tmp_path/'c.csv').returncode == 0
    again = lambda: run('sesemi-train', '--path', mini, '--epochs', 1, '--unlabeled', 'none', '--corrections', tmp_path/'c.csv', '--out', tmp_path/'r', *small)
    assert again().returncode == 0
    more = read_labels(trained).path.iloc[5]
    kept = pd.read_csv(tmp_path/'r/corrections.csv', dtype=str)
    pd.concat([kept, pd.DataFrame([dict(path=more, action='keep')])]).to_csv(tmp_path/'r/corrections.csv', index=False)
    before = (tmp_path/'r/record.json').read_text()
    res = again() # a finished run is not thrown away for a new one that may not come to its end
    assert res.returncode == 2 and 'holds this run, finished' in res.stderr and (tmp_path/'r/record.json').read_text() == before
    (tmp_path/'r/record.json').unlink()
    assert again().returncode == 0 and set(pd.read_csv(tmp_path/'r/corrections.csv').path) == {*kept.path, more}
    assert run('sesemi-labels', trained, '--accept-top', 9, '--corrections', tmp_path/'c.csv').returncode == 0
    (tmp_path/'r/corrections.csv').write_text('x\n1\n')
    assert 'holds no corrections' in again().stderr
    (tmp_path/'r/corrections.csv').unlink()
    res = again() # the file has another content now: another run
    assert res.returncode == 2 and 'finished run with other settings' in res.stderr

def test_store_of_corrected_data(trained, mini, tmp_path):
    "One store serves the data with corrections and without"
    assert run('sesemi-labels', trained, '--accept-top', 3, '--corrections', tmp_path/'c.csv').returncode == 0
    first = None
    for extra in ([], ['--corrections',tmp_path/'c.csv']):
        res = run('sesemi-train', '--path', mini, '--epochs', 1, '--unlabeled', 'none', '--store', tmp_path/'store', *extra, *small)
        assert res.returncode == 0, res.stderr
        made = [(f, f.stat().st_mtime_ns) for f in (tmp_path/'store').rglob('store.json')]
        assert len(made) == 1 and first in (None,made)
        first = made

def test_true_labels_known_in_part(mini):
    from sesemi_fastai.labels import truly_wrong
    from sesemi_fastai.memory import true_labels
    t = table_of(mini)
    t['true'] = t.label # all right, as far as it is known
    t.loc[t.index[::2],'true'] = ''
    dls = table_dls(t, mini, size=32, bs=16, num_workers=0)
    learn = Learner(dls, xresnet18(n_out=dls.c), metrics=accuracy, cbs=[LabelReport(),Memorisation()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert (true_labels(dls) == -1).sum() == (t[~t.is_valid].true == '').sum() > 0
    df = learn.label_report.frame()
    assert learn.memorisation.history[-1]['wrong_as_given'] is None and 0 < len(truly_wrong(df)) < len(df) and not truly_wrong(df).any()
    assert np.isnan(average_precision(df))
    df.loc[df.index[0],'true'] = 'something else'
    assert average_precision(df) == 1

@pytest.mark.cell('Suspicious labels', 'decisions that are there stay, and those of an earlier round go on into the next')
def test_decisions_add_up(trained, mini, tmp_path):
    df = read_labels(trained)
    c = tmp_path/'c.csv'
    pd.DataFrame(dict(path=df.path[:1], label=df.label[:1], action='keep', new_label='')).to_csv(c, index=False)
    res = run('sesemi-labels', trained, '--accept', float(df.score[2]), '--corrections', c)
    fixes = pd.read_csv(c, dtype=str, keep_default_na=False)
    assert fixes.action.tolist()[:3] == ['keep','drop','drop'] and '1 decisions that were there and stay (without' in res.stdout
    out = tmp_path/'again'
    assert run('sesemi-train', '--path', mini, '--epochs', 1, '--unlabeled', 'none', '--corrections', c, '--out', out, *small).returncode == 0
    again = read_labels(out)
    new = again[~again.path.isin(fixes.path)].iloc[0] # the one that was kept may be suspected again
    assert run('sesemi-labels', out, '--accept', float(new.score)).returncode == 0
    both = pd.read_csv(out/'corrections.csv', dtype=str, keep_default_na=False)
    assert both.path.tolist()[:len(fixes)] == fixes.path.tolist() and new.path in set(both.path[len(fixes):])

@pytest.mark.parametrize('args,says', [(['--n', -1], 'the number of labels'), (['--corrections', 'c.csv'], 'without --accept'),
    (['--accept', 2], 'a score from 0 to 1'), (['--accept', .5, '--action', 'burn'], 'drop or relabel')])
def test_mistakes_of_sesemi_labels(trained, args, says):
    res = run('sesemi-labels', trained, *args)
    assert res.returncode == 2 and says in res.stderr and len(res.stderr.splitlines()) == 1 and not res.stdout

@pytest.mark.cell('Suspicious labels', 'a run without a list, a list or corrections that are none, validation images: one line')
@pytest.mark.parametrize('text,says', [(None, 'there is no file'), ('a,b\n1,2\n', "no column 'path'"), ('path,action\nnone.jpg,drop\n', 'not in the table'),
    ('path,action,new_label\n{train},relabel,whale\n', 'no class'),
    ('path,action\n{valid},drop\n', 'validation image'), ('path,action\n{train},burn\n', 'choose keep, drop or relabel'),
    ('path,label,action\n{train},whale,drop\n', 'of other labels')])
def test_mistakes_in_corrections(mini, tmp_path, text, says):
    table,f = table_of(mini),tmp_path/'c.csv'
    if text: f.write_text(text.format(train=table.path[~table.is_valid].iloc[0], valid=table.path[table.is_valid].iloc[0]))
    res = run('sesemi-train', '--path', mini, '--epochs', 1, '--unlabeled', 'none', '--corrections', f, *small)
    assert res.returncode == 2 and says in res.stderr and len(res.stderr.splitlines()) == 1, res.stderr

@pytest.mark.cell('Suspicious labels', 'data of very many images and classes: the list is without the probabilities; where their sums fit into no memory '
                                       'there is a note instead of a list')
def test_lists_of_very_large_data(mini, tmp_path, monkeypatch, capsys):
    kw = dict(path=mini, dataset='mini', size=32, arch='xresnet10_half', bs=8, workers=0, epochs=1, precision='fp32', unlabeled='none', bar=False, max_steps=3)
    monkeypatch.setattr(labels, '_most_probs', 100)
    record = train_run(**kw, out=str(tmp_path/'r'))
    df = read_labels(tmp_path/'r')
    assert not any(o.startswith('p:') for o in df) and {'path','label','true','suggested','score','margin'} <= set(df)
    assert 0 < record['label_precision'] < 1 and 'label_precision_self_confidence' not in record
    res = run('sesemi-labels', tmp_path/'r')
    assert res.returncode == 0 and 'as listed' in res.stdout and 'self-confidence' not in res.stdout, res.stderr
    res = run('sesemi-labels', tmp_path/'r', '--cleanlab')
    assert res.returncode == 2 and 'without the probabilities' in res.stderr and len(res.stderr.splitlines()) == 1
    monkeypatch.setattr(labels, 'need_memory', partial(too_small, of=labels.need_memory))
    capsys.readouterr()
    (tmp_path/'r/record.json').unlink()
    record = train_run(**kw, out=str(tmp_path/'r'))
    assert record['status'] == 'done' and 'label_precision' not in record and not (tmp_path/'r/labels.csv').exists() # nor that of the run before
    assert capsys.readouterr().err.count('none is made') == 1
    (tmp_path/'r/record.json').write_text(json.dumps({**record, 'config':None}))
    res = run('sesemi-train', '--resume', tmp_path/'r')
    assert res.returncode == 2 and 'a broken one' in res.stderr and len(res.stderr.splitlines()) == 1, res.stderr
    del record['config']['max_steps'] # as in records of before it was an option
    (tmp_path/'r/record.json').write_text(json.dumps(record))
    res = run('sesemi-train', '--resume', tmp_path/'r')
    assert res.returncode == 0 and 'suspected' not in res.stderr and 'nothing is left to train' in res.stderr, res.stderr

def test_a_list_that_no_longer_fits_is_not_the_old_one(make_learn, monkeypatch):
    learn = make_learn(cbs=LabelReport())
    fit(learn, 1)
    assert len(learn.label_report.frame())
    monkeypatch.setattr(labels, 'need_memory', partial(too_small, of=labels.need_memory))
    fit(learn, 1)
    with pytest.raises(InputError, match='too little memory'): learn.label_report.frame()
    monkeypatch.undo()
    fit(learn, 1)
    assert learn.label_report.epochs == 1

def test_no_list_where_another_process_lacks_the_memory(make_learn, monkeypatch, capsys):
    "All have to decide alike, as they add up their sums"
    monkeypatch.setattr(labels, 'num_distrib', lambda: 2)
    monkeypatch.setattr(labels, 'max_over_ranks', lambda t: t.fill_(1))
    learn = fit(make_learn(cbs=LabelReport()), 1)
    assert learn.label_report.too_large and 'another process has too little memory' in capsys.readouterr().err

def too_small(n, *args, of): of(10**9*n, *args)

def test_suggestions_are_made_piece_by_piece():
    probs,given = np.random.default_rng(0).random((20_001,3)),np.arange(20_001)%3
    others = probs.copy()
    others[np.arange(len(probs)),given] = -1
    assert (suspects(probs, given, np.zeros(len(probs))).suggested == others.argmax(1)).all()

def test_not_a_list(tmp_path):
    for text,says in (('label,suggested,score\n', 'is empty'), ('label,suggested,score\na,b,much\n', 'from 0 to 1'),
                      ('label,suggested,score\na,b,\n', 'from 0 to 1'), ('label,true,suggested,score,p:b\na,b,b,.5,.5\n', "no column 'p:a'")):
        (tmp_path/'labels.csv').write_text(text)
        res = run('sesemi-labels', tmp_path)
        assert res.returncode == 2 and says in res.stderr and len(res.stderr.splitlines()) == 1, res.stderr
    (tmp_path/'labels.csv').write_text('a,b\n1,2\n')
    for where,says in ((tmp_path, 'not a list of labels'), (tmp_path/'none', 'leaves one when it is done')):
        res = run('sesemi-labels', where)
        assert res.returncode == 2 and says in res.stderr and len(res.stderr.splitlines()) == 1

def test_classes_that_look_like_numbers_or_nothing(tmp_path):
    "Classes 1, NA and 007 stay what they are on the way to the list and back"
    from PIL import Image
    for c in ('1','NA','007'):
        for split in ('train','val'):
            (tmp_path/'d'/split/c).mkdir(parents=True)
            for i in range(6):
                Image.fromarray(np.random.default_rng(i).integers(0, 255, (40,40,3), dtype=np.uint8)).save(tmp_path/'d'/split/c/f'{c}{split}{i}.png')
    common = ['--dataset', 'own', '--path', tmp_path/'d', '--epochs', 1, '--unlabeled', 'none', '--size', 32, '--arch', 'xresnet18', '--bs',
              6, '--workers', 0, '--no-bar']
    assert run('sesemi-train', *common, '--out', tmp_path/'r').returncode == 0
    df = read_labels(tmp_path/'r')
    assert {*df.label} == {*df.suggested, *df.label} == {'1','NA','007'}
    run('sesemi-labels', tmp_path/'r', '--accept', 0, '--action', 'relabel')
    fixes = pd.read_csv(tmp_path/'r/corrections.csv', dtype=str, keep_default_na=False)[:3]
    fixes.to_csv(tmp_path/'c.csv', index=False)
    res = run('sesemi-train', *common, '--corrections', tmp_path/'c.csv', '--out', tmp_path/'r2')
    assert res.returncode == 0, res.stderr
    now = read_labels(tmp_path/'r2').set_index('path').label
    assert all(now[o.path] == o.new_label for o in fixes.itertuples() if o.path in now)

# -- the widget, as a user has it
chromium = shutil.which('chromium') or shutil.which('chromium-browser')

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def notebook(*cells): return dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python')),
    cells=[dict(cell_type='code', id=f'c{i}', metadata={}, source=c, outputs=[], execution_count=None) for i,c in enumerate(cells)])

@pytest.fixture
def lab(tmp_path):
    "JupyterLab in a folder of its own"
    pytest.importorskip('jupyterlab')
    port,(work,home) = free_port(),(tmp_path/'work',tmp_path/'home')
    for o in (work,home): o.mkdir()
    env = {**os.environ, 'JUPYTER_CONFIG_DIR':str(home/'c'), 'JUPYTER_DATA_DIR':str(home/'d'), 'JUPYTER_RUNTIME_DIR':str(home/'r'), 'IPYTHONDIR':str(home/'i')}
    p = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}', '--ServerApp.port_retries=0',
                          '--IdentityProvider.token=', f'--ServerApp.root_dir={work}',
        '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'], env=env, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    for _ in range(240):
        try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api', timeout=1); break
        except OSError: time.sleep(.5)
    yield work,f'http://127.0.0.1:{port}'
    p.terminate()
    p.wait(30)

@pytest.mark.cell('Suspicious labels', 'the cleaner in JupyterLab, in a real browser: a menu, the next page, and the file that training takes')
@pytest.mark.skipif(not chromium, reason="needs Debian's package chromium")
def test_cleaner_in_jupyterlab(lab, trained, mini, tmp_path):
    sync_api = pytest.importorskip('playwright.sync_api')
    work,url = lab
    (work/'clean.ipynb').write_text(json.dumps(notebook(
        f"from sesemi_fastai.all import *\ncleaner = LabelCleaner(read_labels({str(trained)!r}), {str(mini)!r}, 'corrections.csv', n=4)\ncleaner")))
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1280, height=900))
        page.goto(f'{url}/lab/tree/clean.ipynb?reset', timeout=120_000)
        cell = page.locator('.jp-Notebook .jp-CodeCell').first
        cell.wait_for(timeout=180_000)
        page.get_by_text('| Idle').wait_for(timeout=180_000) # the kernel is there
        for _ in range(20): # a key that comes before the page listens is lost
            cell.click()
            page.keyboard.press('Shift+Enter')
            page.wait_for_timeout(2000)
            if cell.locator('.jp-InputPrompt').first.inner_text().strip() != '[ ]:': break
        menus = page.locator('.widget-dropdown select')
        menus.first.wait_for(timeout=180_000)
        assert menus.count() == 4 and page.locator('.jp-OutputArea img').count() == 4
        df = read_labels(trained)
        menus.nth(0).select_option('<Delete>')
        menus.nth(1).select_option(df.suggested[1])
        page.get_by_text('2 labels to drop or change').wait_for(timeout=30_000)
        page.get_by_role('button', name='Next').click()
        page.get_by_text(f'page 2 of').wait_for(timeout=30_000)
        page.locator('.widget-dropdown select').nth(0).select_option('<Delete>')
        page.get_by_text('3 labels to drop or change').wait_for(timeout=30_000)
        page.screenshot(path=tmp_path/'cleaner.png')
        browser.close()
    fixes = pd.read_csv(work/'corrections.csv', dtype=str, keep_default_na=False)
    assert fixes[['path','action','new_label']].values.tolist() == [[df.path[0],'drop',''],[df.path[1],'relabel',df.suggested[1]],[df.path[4],'drop','']]

@pytest.mark.cell('Suspicious labels', "DataLoaders of fastai's own: from_df, from_lists, from_folder, a DataBlock over dicts; paths from the data folder on")
@pytest.mark.parametrize('kind', ['df','lists','folder','dicts'])
def test_names_in_loaders_of_fastai(mini, kind):
    t = table_of(mini)
    kw = dict(item_tfms=Resize(32), bs=16, num_workers=0)
    if kind == 'df': dls = ImageDataLoaders.from_df(t.rename(columns={'path':'file'}), mini, fn_col='file', label_col='label', valid_col='is_valid', **kw)
    if kind == 'lists': dls = ImageDataLoaders.from_lists(mini, [mini/o for o in t.path], list(t.label), **kw)
    if kind == 'folder': dls = ImageDataLoaders.from_folder(mini, valid='val', **kw)
    if kind == 'dicts':
        dls = DataBlock((ImageBlock,CategoryBlock), get_x=lambda o: o['f'],
                        get_y=lambda o: o['l']).dataloaders([dict(f=mini/p, l=l) for p,l in zip(t.path, t.label)], path=mini, **kw)
    learn = Learner(dls, xresnet18(n_out=dls.c), metrics=accuracy, cbs=[LabelReport(),Predictions()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    for df in (learn.label_report.frame(), learn.predictions.frame()):
        assert len(df) and set(df.path) <= set(t.path)
        if kind != 'folder': assert (df.label == df.path.map(t.set_index('path').label)).all()

def test_corrections_that_are_no_table(mini):
    for wrong in (dict(path=['a'], action=['drop']), ['a']):
        with pytest.raises(InputError, match='give a CSV file, or a DataFrame'): mini_dls(50, 32, str(mini), bs=8, num_workers=0, corrections=wrong)
    numbers = pd.DataFrame(dict(path=['a'], action=[1]))
    with pytest.raises(InputError, match="action '1' of a is unknown"): corrected(pd.DataFrame(dict(path=['a'], label=['x'], is_valid=[False])), numbers)

@pytest.mark.parametrize('rare', [.5, .05])
def test_classes_of_few_images_are_not_suspected(rare):
    "Labels that are wrong by chance come first, also where one class is rare"
    rng = np.random.default_rng(0)
    true = (rng.random(4000) < rare).astype(int)
    given = np.where(rng.random(4000) < .1, 1-true, true)
    sure = rng.normal(2, 1.5, 4000) # logit of the true class over the other
    p = 1/(1+np.exp(-sure))
    df = suspects(np.where((true == 1)[:,None], np.c_[1-p,p], np.c_[p,1-p]), given, np.where(given == true, sure, -sure))
    np.testing.assert_allclose(df.score, 1-np.where(given == true, p, 1-p))
    assert average_precision_score(given != true, df.score) > .75 and (df.suggested == 1-given).all()

def test_many_classes_are_no_reason_to_suspect():
    "A label that the network prefers is not above a half, however little of the whole it has"
    logits = torch.zeros(4, 1000)
    logits[:,7] = .5
    labels = torch.tensor([7,7,7,3])
    df = suspects(logits.softmax(1).numpy(), labels.numpy(), margins(logits, labels).numpy())
    assert (df.score[:3] < .5).all() and df.score[3] > .5 and df.suggested[3] == 7

def test_the_order_of_a_run_is_in_its_record_and_its_list(trained):
    "As the margin says, which the list has as a column"
    df = read_labels(trained)
    assert df.margin.is_monotonic_increasing and read_record(trained)['label_order'] == 'margin'
    np.testing.assert_allclose(df.score, 1/(1+np.exp(df.margin)), atol=1e-3)

def test_corrections_that_empty_a_class(mini):
    t = table_of(mini)
    gone = t[~t.is_valid & (t.label == t.label.iloc[0])]
    with pytest.raises(InputError, match=f'leave class {t.label.iloc[0]!r} no training image'):
        table_dls(t, mini, 32, bs=8, num_workers=0, corrections=gone[['path']].assign(action='drop'))
