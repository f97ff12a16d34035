"A study on a Ray cluster of two nodes, one of which is killed in the middle of a run: python tests/two_nodes.py FOLDER"
import json, sys, threading, time
from pathlib import Path
from sesemi_fastai.mini import make_mini

def running(out):
    "Runs that have written a checkpoint and are not done"
    return sorted({f.parent.parent.name for f in out.rglob('fit-*.pth')})

def kill_one(cluster, node, out, seen):
    "Once two runs are under way, take the second node away"
    while len(seen['running']) < 2:
        seen['running'] = running(out)
        time.sleep(.1)
    cluster.remove_node(node, allow_graceful=False)
    seen['killed'] = True

if __name__ == '__main__':
    import ray
    from ray.cluster_utils import Cluster
    from sesemi_fastai.cluster import run_on_ray
    folder = Path(sys.argv[1])
    mini = str(make_mini(folder/'mini', 120, 20))
    runs = {f'run{i}':dict(dataset='own', path=mini, size=32, arch='xresnet18', bs=16, workers=0, epochs=12, seed=i, precision='fp32') for i in range(3)}
    node = dict(num_cpus=1, object_store_memory=10**8)
    cluster = Cluster(initialize_head=True, head_node_args=node)
    second = cluster.add_node(**node)
    cluster.wait_for_nodes()
    seen = dict(running=[], killed=False)
    threading.Thread(target=kill_one, args=(cluster, second, folder/'runs', seen), daemon=True).start()
    run_on_ray(runs, folder/'runs', address=cluster.address, bar=False)
    ray.shutdown()
    cluster.shutdown()
    records = [json.loads((folder/f'runs/{k}/record.json').read_text()) for k in runs]
    print(json.dumps(dict(killed=seen['killed'], under_way=seen['running'], status=[o['status'] for o in records], epochs=[len(o['history']) for o in records],
                          resumed=sum(o.get('resumed', 0) for o in records))))
