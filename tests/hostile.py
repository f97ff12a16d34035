"Inputs that are wrong in every way we could think of; tests and `make torture` try them all"
import os
from pathlib import Path
import numpy as np
from PIL import Image

rng = np.random.default_rng(0)
pixels = rng.integers(0, 255, (60,80,3), dtype=np.uint8)
picture = Image.fromarray(pixels)
def bytes_of(fmt, im=picture, **kw):
    import io
    buf = io.BytesIO()
    im.save(buf, fmt, **kw)
    return buf.getvalue()
def exif(turn): e = Image.Exif(); e[0x112] = turn; return e
def flipped(b, at): return b[:at]+bytes([b[at]^255])+b[at+1:]

jpg,png,webp,gif = bytes_of('JPEG'),bytes_of('PNG'),bytes_of('WEBP', lossless=True),bytes_of('GIF')
other = Image.fromarray(255-pixels)

# file name -> content, kind of fault, word of the reason
bad_images = {
    'cut.jpg': (jpg[:-700], 'bad', 'truncated'), 'cut_in_header.jpg': (jpg[:30], 'bad', ''), 'cut.png': (png[:-3000], 'bad', ''),
    'cut.webp': (webp[:-2000], 'bad', ''),
    'empty.jpg': (b'', 'bad', 'empty'), 'text.JPEG': (b'not an image at all', 'bad', 'no image'),
    'page.png': (b'<html><body>404</body></html>', 'bad', 'no image'),
    'zeros.jpg': (bytes(5000), 'bad', 'no image'), 'noise.png': (rng.bytes(5000), 'bad', 'no image'), 'head_only.jpg': (jpg[:3]+rng.bytes(900), 'bad', ''),
    'broken_stream.png': (flipped(png, len(png)//2), 'bad', ''), 'bomb.png': (bytes_of('PNG', Image.new('1', (13_500,13_500))), 'bad', 'decompression bomb'),
    'sixteen.png': (bytes_of('PNG', Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64,64))), 'bad', '8 bits'),
    'float.tif': (bytes_of('TIFF', Image.fromarray(np.ones((8,8), np.float32))), 'bad', '8 bits'),
    'ints.tif': (bytes_of('TIFF', Image.fromarray(np.ones((8,8), np.int32))), 'bad', '8 bits'),
    **{f'turned{i}.jpg': (bytes_of('JPEG', exif=exif(i)), 'turned', f'orientation {i}') for i in range(2,9)},
    'moves.gif': (bytes_of('GIF', save_all=True, append_images=[other]), 'odd', 'first of 2 frames'),
    'moves.webp': (bytes_of('WEBP', save_all=True, append_images=[other]), 'odd', 'first of 2 frames'),
    'moves.png': (bytes_of('PNG', save_all=True, append_images=[other]), 'odd', 'first of 2 frames'),
    'large.png': (bytes_of('PNG', Image.new('1', (9600,9600))), 'odd', 'slow to read')}
good_images = {'plain.jpg': jpg, 'plain.png': png, 'plain.webp': webp, 'plain.gif': gif, 'grey.jpg': bytes_of('JPEG', picture.convert('L')),
               'cmyk.jpg': bytes_of('JPEG', picture.convert('CMYK')),
    'palette.png': bytes_of('PNG', picture.convert('P')), 'alpha.png': bytes_of('PNG', picture.convert('RGBA')),
    'grey_alpha.png': bytes_of('PNG', picture.convert('LA')),
    'one_bit.png': bytes_of('PNG', picture.convert('1')), 'progressive.jpg': bytes_of('JPEG', progressive=True),
    'upright.jpg': bytes_of('JPEG', exif=exif(1)), 'undefined_turn.jpg': bytes_of('JPEG', exif=exif(0)),
    'two_in_one.jpg': bytes_of('MPO', save_all=True, append_images=[other])}

def write_bad_images(folder):
    "All of them, and those that are no plain files"
    folder.mkdir(parents=True)
    for name,(content,*_) in bad_images.items(): (folder/name).write_bytes(content)
    os.mkfifo(folder/'pipe.jpg')
    (folder/'loop.jpg').symlink_to(folder/'loop.jpg')
    (folder/'nowhere.jpg').symlink_to(folder/'gone.jpg')
    (folder/'folder.jpg').mkdir()
    return {**{k:v[1:] for k,v in bad_images.items()}, 'pipe.jpg':('bad','regular'), 'loop.jpg':('bad','symbolic links'),
            'nowhere.jpg':('bad','no such file'), 'folder.jpg':('bad','regular')}

rows = [(f'train/{c}/{i}.png',c,False) for c in 'ab' for i in range(12)] + [(f'valid/{c}/{i}.png',c,True) for c in 'ab' for i in range(2)]
def make_folder(folder):
    "Images of two classes that every table below is about"
    for p,*_ in rows:
        (folder/p).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (24,24,3), dtype=np.uint8)).save(folder/p)
    (folder.parent/'outside.png').write_bytes(png)
    (folder/'link.png').symlink_to(folder.parent/'outside.png')
    (folder/'linked').symlink_to(folder.parent)
    return folder

def table(rows=rows, head='path,label,is_valid'): return '\n'.join([head]+[','.join(map(str, o)) for o in rows])+'\n'
def with_row(*row): return table([*rows, row])
# name -> content of the CSV file, words of the answer
bad_tables = {
    'no column path': (table(head='file,label,is_valid'), "no column 'path'"), 'no column label': (table(head='path,class,is_valid'), "no column 'label'"),
    'no table': (b'', 'is not a CSV file'), 'only a head': ('path,label,is_valid\n', 'there are no'),
    'twice': (with_row('train/a/0.png','a',False), 'stands twice'),
    'twice, spelled otherwise': (with_row('train/./a/0.png','a',False), 'stands twice'), 'climbs out': (with_row('../outside.png','a',False), 'leads out'),
    'climbs out inside': (with_row('train/../../outside.png','a',False), 'leads out'), 'backslashes': (with_row('..\\outside.png','a',False), 'leads out'),
    'absolute': (with_row('/etc/passwd','a',False), 'leads out'), 'drive': (with_row('C:\\windows\\x.png','a',False), 'leads out'),
    'link to a file': (with_row('link.png','a',False), 'by a symbolic link'),
    'link to a folder': (with_row('linked/outside.png','a',False), 'by a symbolic link'), 'a folder': (with_row('train/a','a',False), 'not there'),
    'the folder': (with_row('.','a',False), 'leads out'),
    'missing file': (with_row('train/a/99.png','a',False), 'not there'),
    'another data set': (table([(f'n01440764/{i}.JPEG','tench',i>5) for i in range(12)]), '(and 11 more are not there)'),
    'no path': (with_row('','a',False), 'has no path'), 'no label': (with_row('link2.png','',False), 'has no label'),
    'only training': (table([o for o in rows if not o[2]]), 'no validation images'),
    'only validation': (table([o for o in rows if o[2]]), 'no training images'),
    'class only in validation': (table([(p,'c' if v and l == 'b' else l,v) for p,l,v in rows]), 'only'),
    'class only in training': (table([(p,f'{l}{p[8]}' if not v else l,v) for p,l,v in rows]), 'only'),
    'odd split': (with_row('train/a/99.png','a','maybe'), 'says True or False for each image'),
    'no split': (with_row('train/a/99.png','a',''), 'says True or False for each image'), 'UTF-16': (table().encode('utf-16'), 'not a CSV file in UTF-8'),
    'Latin-1': (table().replace('label', 'Schl\xfcssel').encode('latin-1'), 'not a CSV file in UTF-8'),
    'a picture': (png, 'not a CSV file'), 'zeros': (bytes(1000), ''), 'ragged': (table()+'a,b,c,d,e,f\n', 'not a CSV file'),
    'open quote': (table()+'"train/a/1.png,a,False\n', ''),
    'semicolons': (table().replace(',', ';'), 'no column'), 'column twice': (table(head='path,path,is_valid'), "no column 'label'"),
    'JSON': ('{"path": ["a.png"], "label": ["a"]}', 'no column')}
good_tables = {'plain': table(), 'Windows line ends': table().replace('\n', '\r\n'), 'old Mac line ends': table().replace('\n', '\r'),
               'byte order mark': '\ufeff'+table(),
    'no last line end': table().rstrip(), 'quoted': table([(f'"{p}"',f'"{l}"',v) for p,l,v in rows]),
    'further columns': table([(*o,i) for i,o in enumerate(rows)], head='path,label,is_valid,id'),
    'split as 0 and 1': table([(p,l,int(v)) for p,l,v in rows]), 'numbers as labels': table([(p,'ab'.index(l),v) for p,l,v in rows]),
    'labels that look like missing ones': table([(p,dict(a='NaN',b='NA')[l],v) for p,l,v in rows])}

def as_bytes(content): return content if isinstance(content, bytes) else content.encode()
