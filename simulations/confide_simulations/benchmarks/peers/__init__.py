"""The demo's very task through other systems, side by side in one run: `confide bench peers`.

task.py            what every arm trains: model, shards, steps, rounds, and the one local step that all of them call
arm.py             one arm in a process of its own, whose whole tree is measured
confide_arm.py     a coordinator and nodes, sealed
flower_arm.py      a SuperLink and SuperNodes: FedAvg, and FedAvg under the SecAgg+ mod
flower_app.py      what runs inside Flower: plain ClientApp and ServerApp
flower_secagg.py   the same under Flower's SecAgg+ workflow
nvflare_arm.py     a server and clients (POC), in an environment of its own
nvflare_client.py  what runs inside an NVFLARE client
nvflare_job.py     the job, in that environment
command.py         all arms, scores, table, JSON
"""
