import pickle
import subprocess

from flask import request


def run():
    name = request.args["name"]
    return subprocess.check_output("ping -c 1 " + name, shell=True)


def load(data):
    return pickle.loads(data)
