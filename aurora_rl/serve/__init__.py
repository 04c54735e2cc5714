"""`aurora-rl serve`: a page in the browser that answers clips with the one `AuroraPipeline`.

request   what a visitor sends, checked, answered and drawn; errors that tell a visitor what to do
waveform  a clip's sound over time, to be drawn
examples  clips of the synthetic benchmark as video files
page      what is seen and pressed (Gradio)
server    what is let in from outside
folder    where uploads and answers lie
"""
