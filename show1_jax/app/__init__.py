"""The web page and the HTTP service: one queue of videos to make, on disk, and one worker.

A request is checked (`requests`), becomes jobs in the output folder (`jobs`) and waits until the
worker samples it, together with others that fit (`service`). `http` serves that to programs and
`page` to people. Nothing else imports this folder.
"""
