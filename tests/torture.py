"Everything that a long run may meet, more of it than the tests try: python tests/torture.py [kills]"
import collections, os, sys, tempfile, time, warnings
from pathlib import Path
os.environ.setdefault('HYPOTHESIS_PROFILE', 'ci')
warnings.filterwarnings('ignore')
from hypothesis import given, settings
from sesemi_fastai.core import InputError
from sesemi_fastai.own import own_table
from sesemi_fastai.scan import image_fault
import hostile, kill, test_hostile

def images(d):
    "Every bad image named, no good one"
    faults = hostile.write_bad_images(d/'bad')
    missed = [o for o,(kind,word) in faults.items() if (image_fault(d/'bad'/o) or ' ')[0] != kind]
    for name,content in hostile.good_images.items(): (d/name).write_bytes(content)
    wrong = [o for o in hostile.good_images if image_fault(d/o)]
    assert not missed and not wrong, (missed, wrong)
    print(f'images: {len(faults)} bad or odd ones named with the reason, {len(hostile.good_images)} good ones let through')

def tables(d):
    "Every bad table refused, no good one"
    folder = hostile.make_folder(d/'images')
    for name,(content,words) in hostile.bad_tables.items():
        try: own_table(test_hostile.put(folder, content))
        except InputError as e: assert words in str(e), (name, e)
        else: raise AssertionError(f'{name}: not refused')
    for content in hostile.good_tables.values(): own_table(test_hostile.put(folder, content))
    print(f'tables: {len(hostile.bad_tables)} bad ones refused, {len(hostile.good_tables)} good ones read')
    return folder

def fuzz(folder, n):
    "Random tables: each is read or refused"
    ended = collections.Counter()
    @settings(max_examples=n, deadline=None, database=None)
    @given(test_hostile.fuzz)
    def one(content): ended[test_hostile.read_or_refuse(folder, content)] += 1
    one()
    print(f'random tables: {sum(ended.values())} tried, {ended["refused"]} refused with one line, {ended["read"]} read, no other end')

def main(kills=20, examples=3000):
    began = time.time()
    with tempfile.TemporaryDirectory() as d:
        images(Path(d)/'i')
        fuzz(tables(Path(d)/'t'), examples)
    kill.main(kills, seed=int(began))
    print(f'{time.time()-began:.0f} seconds')

if __name__ == '__main__': main(*map(int, sys.argv[1:]))
