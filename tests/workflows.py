"WORKFLOWS.md from the cells that the tests name: python tests/workflows.py > WORKFLOWS.md"
import ast
from pathlib import Path
import pandas as pd

here = Path(__file__).parent
intro = """# What works, and the test that shows it

People add the callback to Learners that we have never seen. Each row is a workflow or a fault, with the test that fails when it breaks. `make test` runs
them on small drawn images on a CPU; those marked GPU run where a CUDA device is found. `make torture` tries more: every bad image and table, thousands of
random tables, and a run that is killed again and again. This page is made by `make workflows` from the tests themselves."""

def marks(node):
    "Names and arguments of the marks of a test"
    for d in node.decorator_list:
        if isinstance(d, ast.Call) and isinstance(d.func, ast.Attribute): yield d.func.attr,[a.value for a in d.args if isinstance(a, ast.Constant)]
        elif isinstance(d, ast.Attribute): yield d.attr,[]

def cells():
    "Group, workflow, link and device of each cell"
    for f in sorted(here.glob('test_*.py')):
        for node in ast.parse(f.read_text()).body:
            if not isinstance(node, ast.FunctionDef): continue
            found = list(marks(node))
            for name,args in found:
                if name == 'cell': yield *args,f'[`{node.name}`](tests/{f.name})','GPU' if ('cuda',[]) in found else 'CPU'

groups = ['Learner','Robust losses','Suspicious labels','Studies','Optimizers','Precision','Accumulation and mixing','Schedules and fits',
          'Evaluation','Keeping','Loggers','Distributed',
          'Interruption','Resume','Numbers','Bad images','Bad tables','Property tests']

def page():
    "The whole page"
    df = pd.DataFrame(cells(), columns=['group','workflow','test','where'])
    df = df.sort_values('group', key=lambda s: s.map(groups.index), kind='stable')
    tables = [f'## {group}\n\n{part.drop(columns="group").to_markdown(index=False)}' for group,part in df.groupby('group', sort=False)]
    return '\n\n'.join([intro, *tables])

if __name__ == '__main__': print(page())
