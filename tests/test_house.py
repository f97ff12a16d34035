"The house: imports run one way, pages are in step with records, nothing is too big"
import ast, json, re, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
pkg = root/'sesemi_fastai'
allowed = dict(core=[], rotation=['core'], model=['core'], distributed=['core'], store=['core'], plans=['core','store'],
               batches=['core','plans','store'], stream=['batches','core','distributed','rotation','scan'], phase=['core'], columns=['core','phase'],
               callback=['columns','core','distributed','model','phase','rotation','stream'], items=['core','distributed','phase'], estimate=[],
               losses=['core','items'],
               robust=['columns','core','distributed','items','losses','phase'], forward=['core','estimate','losses'],
               selection=['callback','core','losses'],
               pseudo=['callback','core','phase','selection','stream'], average=['core','phase'],
               methods=['average','core','forward','losses','pseudo','robust','selection'],
               labels=['core','distributed','items','phase','predictions'],
               memory=['columns','core','distributed','items','phase'], steps=['core','distributed','phase'], im2col=['phase'],
               precision=['core','im2col','phase'],
               prefetch=['phase'], checkpoint=['core','distributed','items','phase'],
               weights=['core'], noise=['core'], scan=['core'], augment=['core','plans'], corrections=['core','items'], cleaner=['core','corrections'],
               data=['augment','batches','core','corrections','scan','store'], own=['core','data'], tree=['core','data'], mini=['core','noise','data'],
               optim=['core'], arch=['core','weights'], recipe=['core','optim','precision'], record=['core','phase','recipe'],
               trust=['core','predictions','record','robust'],
               folder=['checkpoint','core','recipe','record'],
               predictions=['core','distributed','items','phase'],
               setup=['arch','callback','core','data','labels','memory','methods','mini','optim','own','precision','predictions','prefetch',
               'recipe','scan','selection','steps','stream'],
               checks=['arch','augment','core','methods','optim','precision','recipe','setup'],
               experiment=['arch','checkpoint','checks','core','corrections','distributed','folder','labels','optim','predictions','recipe','record','scan',
               'setup','weights'],
               study=['checks','core','experiment','folder','recipe','record'], cluster=['core','folder','recipe','record','study'],
               bench=['arch','callback','core','data','im2col','precision','prefetch','record','rotation','stream'],
               scale=['arch','bench','callback','core','data','precision','record','stream'], table=['core','recipe'], curves=['core','recipe','table'],
               classes=['curves','recipe','table'], page=['classes','core','curves','labels','predictions','recipe','table'], loggers=['core'], ending=['core'],
               cli=['bench','checks','cluster','core','corrections','curves','data','ending','experiment','folder','labels','mini','page','recipe',
               'record','scale','scan','setup','stream','study','table','tree','trust'])

def imports(fname):
    "Modules of this package that a module imports, anywhere in it"
    for node in ast.walk(ast.parse(fname.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or '').startswith('sesemi_fastai')):
            name = (node.module or '').removeprefix('sesemi_fastai').lstrip('.')
            yield from [name.split('.')[0]] if name else [a.name for a in node.names]

@pytest.mark.parametrize('name', allowed)
def test_imports_run_one_way(name): assert set(imports(pkg/f'{name}.py')) <= set(allowed[name])

def test_the_table_of_imports_is_the_one_that_is_guarded():
    rows = re.findall(r'^\| `(\w+)` \| .* \| (.*) \|$', (root/'CONTRIBUTING.md').read_text(), re.M)
    assert {k for k,_ in rows} == {*allowed}
    for i,(name,told) in enumerate(rows):
        above,may = {k for k,_ in rows[:i]},{*allowed[name]}
        assert may <= above and (told == 'all above' or may == {*re.findall(r'`(\w+)`', told)}), name

def test_every_module_has_its_place(): assert {o.stem for o in pkg.glob('*.py')} == {*allowed, 'all', '__init__', '_modidx'}

def notebooks(): return [o for o in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts]

def test_notebooks_are_small():
    for nb in notebooks():
        assert nb.stat().st_size < 500_000, nb
        for cell in json.loads(nb.read_text())['cells']:
            for out in cell.get('outputs', []):
                assert len(json.dumps(out)) < 100_000, nb

def code_of(f):
    "Of a notebook its code cells one by one, of a module all of it"
    if f.suffix == '.py': return [f.read_text()]
    return [''.join(c['source']) for c in json.loads(f.read_text())['cells'] if c['cell_type'] == 'code']

def test_lines_of_code_are_short():
    "160 characters, as in fastai; help in a comment beside a parameter, and text in triple quotes, may be longer"
    for f in [*notebooks(), *(root/'tests').glob('*.py'), root/'setup.py', *(root/'nbs').rglob('*.py')]:
        for code in code_of(f):
            lines,strings = code.split('\n'),[o for o in ast.walk(ast.parse(code)) if isinstance(o, (ast.Constant,ast.JoinedStr))]
            text = {i for o in strings if '"""' in lines[o.lineno-1] for i in range(o.lineno, o.end_lineno+1)}
            for i,line in enumerate(lines, 1): assert i in text or len(line.split(' # ')[0]) <= 160, f'{f.name}: {line}'

def test_links_between_pages_lead_somewhere():
    for page in [*notebooks(), *root.glob('*.md')]:
        text = page.read_text()
        for link in re.findall(r'\]\(([^()#:\s]+\.(?:ipynb|toml|md|csv))\)', text): assert (page.parent/link).exists(), f'{page.name}: {link}'
        assert not re.findall(r'\]\((?!http)[a-z_/]+\.html\)', text), f'{page.name}: a link to .html leads nowhere where notebooks are read'

def test_public_functions_are_documented():
    "A docstring of one line on each public function and class, and a comment beside each parameter"
    from inspect import Parameter, isclass, isfunction, signature
    from fastcore.docments import docments
    import importlib
    from sesemi_fastai.data import table_dls
    told_there = {k for k,v in docments(table_dls, returns=False).items() if v} # of those that builders hand on to it
    for name in allowed:
        mod = importlib.import_module(f'sesemi_fastai.{name}')
        for o in (getattr(mod, n) for n in getattr(mod, '__all__', [])):
            if not (isfunction(o) or isclass(o)) or o.__module__ != mod.__name__: continue
            doc = o.__doc__ or ''
            if name == 'mini' and o.__name__ in mod.objects: continue
            assert doc and '\n' not in doc, f'{name}.{o.__name__}'
            if isfunction(o):
                missing = [k for k,v in docments(o, returns=False).items() if not v and k not in ('self','kwargs','config','memo')
                           and not (k in told_there and signature(o).parameters[k].kind == Parameter.KEYWORD_ONLY)]
                assert len(signature(o).parameters) < 2 or not missing, f'{name}.{o.__name__}: {missing}'

def test_names_of_the_readme_are_there():
    "What a Python block of README uses comes with the two star imports, or is made there"
    import ast, builtins
    names = set(dir(builtins)) | {'learn','dls','path','cbs'}
    space = {}
    exec('from fastai.vision.all import *\nfrom sesemi_fastai.all import *', space)
    for block in re.findall(r'```python\n(.*?)```', (root/'README.md').read_text(), re.S):
        tree = ast.parse(block)
        made = {o.id for o in ast.walk(tree) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store)}
        used = {o.id for o in ast.walk(tree) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Load)}
        assert not (lost := used-made-names-set(space)), lost

def test_no_test_hides_another():
    import ast
    for f in (root/'tests').glob('*.py'):
        found = [o.name for o in ast.parse(f.read_text()).body if isinstance(o, (ast.FunctionDef,ast.ClassDef))]
        assert len(found) == len(set(found)), (f.name, [o for o in found if found.count(o) > 1])

def records(): return sorted((root/'nbs/experiments/results').rglob('record.json'))

def test_records_are_whole_and_name_no_machine_path():
    for f in records():
        o = json.loads(f.read_text())
        assert o['status'] == 'done' and len(o['history']) == o['config']['epochs'], f
        assert not re.search(r'"/\w', f.read_text()), f
        assert f.stat().st_size < 4_000+400*o['config']['epochs'], f
        assert re.fullmatch(r'[0-9a-f]{40}', o['commit']), f'{f}: made from a checkout with changes'

def test_readme_is_the_notebook(tmp_path):
    "Also runs the notebook: a table in README is what the committed records say now"
    res = subprocess.run(['make', '-s', 'readme', f'README={tmp_path/"README.md"}', f'VENV={Path(sys.executable).parent.parent}'], cwd=root,
                         capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    new = (tmp_path/'README.md').read_text()
    assert new.startswith('# sesemi_fastai') and '±' in new
    assert new == (root/'README.md').read_text(), 'run: make readme'

def test_pictures_of_readme_are_there_and_small():
    for src in re.findall(r'!\[[^]]*\]\((.+?)\)', (root/'README.md').read_text()): assert (root/src).stat().st_size < 100_000

def test_workflows_page_is_made_from_the_tests():
    from workflows import page
    assert page()+'\n' == (root/'WORKFLOWS.md').read_text(), 'run: make workflows'

def test_badges_for_colab(tmp_path):
    "With an address each tutorial gets a badge to itself and an install cell that does nothing elsewhere; a second time changes nothing"
    import importlib.util, shutil
    spec = importlib.util.spec_from_file_location('badges', root/'nbs/badges.py')
    badges = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(badges)
    (tmp_path/'settings.ini').write_text('[DEFAULT]\ngit_url = https://github.com/owner/name.git\n')
    assert badges.address(tmp_path/'settings.ini') == 'owner/name'
    for f in (root/'nbs/tutorials').glob('*.ipynb'):
        new = Path(shutil.copy(f, tmp_path))
        badges.add_badge(new, 'owner/name')
        once = new.read_text()
        badge,install,*rest = json.loads(once)['cells']
        assert f'/github/owner/name/blob/main/nbs/tutorials/{f.name}' in badge['source'][0]
        assert rest == [c for c in json.loads(f.read_text())['cells'] if not c['id'].startswith('colab-')]
        assert 'google.colab' in ''.join(install['source'])
        badges.add_badge(new, 'owner/name')
        assert new.read_text() == once
    (tmp_path/'settings.ini').write_text('[DEFAULT]\n')
    with pytest.raises(SystemExit, match='git_url'): badges.address(tmp_path/'settings.ini')

def test_version_stands_once():
    from sesemi_fastai import __version__
    from importlib.metadata import version
    assert version('sesemi_fastai') == __version__

def test_all_shadows_nothing_of_fastai():
    import fastai.vision.all as theirs, sesemi_fastai.all as ours
    assert [k for k,v in vars(ours).items() if not k.startswith('_') and getattr(theirs, k, v) is not v] == []

def test_the_import_brings_little_that_fastai_has_not():
    "Seconds depend on the machine; what is imported does not"
    code = ("import sys, warnings; warnings.simplefilter('ignore'); from fastai.vision.all import *; before = set(sys.modules); import sesemi_fastai.all\n"
            "print(*{o.split('.')[0] for o in set(sys.modules)-before})")
    brought = set(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split())
    assert 'sesemi_fastai' in brought and brought <= {'sesemi_fastai','tomllib','torchvision'}, brought
