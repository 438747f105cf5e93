"""Entry points to try and to test the pack: demo.py, test.py; environment.py and host.py are shared by both."""
