from pathlib import Path
from xml.etree import ElementTree

from setuptools import setup

manifest = ElementTree.parse('package.xml').getroot()
name = manifest.findtext('name')
maintainer = manifest.find('maintainer')

# The node's data keeps its tree under share/. config/training belongs to the workstation side.
files = sorted(
    path
    for path in [*Path('launch').glob('*.launch.py'), *Path('config').rglob('*')]
    if path.is_file() and not path.is_relative_to('config/training')
)

setup(
    name=name,
    version=manifest.findtext('version'),
    description=manifest.findtext('description'),
    maintainer=maintainer.text,
    maintainer_email=maintainer.get('email'),
    license=manifest.findtext('license'),
    packages=[name],  # never training/: it is run from the clone
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{name}']),
        (f'share/{name}', ['package.xml']),
        *((f'share/{name}/{path.parent}', [str(path)]) for path in files),
    ],
    # ROS comes from apt or a sourced workspace and is named in package.xml, never here.
    install_requires=['setuptools'],
    extras_require={'test': ['pytest']},  # tells `colcon test` to use pytest
    zip_safe=True,
    entry_points={
        'console_scripts': [
            f'policy_node = {name}.policy_node:main',
            f'sim_node = {name}.sim_node:main',
            f'gazebo_reset_node = {name}.gazebo_reset_node:main',
        ],
    },
)
