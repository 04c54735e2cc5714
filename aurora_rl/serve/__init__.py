"""`aurora-rl serve`: a page in the browser that answers clips with the one `AuroraPipeline`.

request      checks, answers and draws a visitor's request; its errors tell a visitor what to do
waveform     draws a clip's sound over time
examples     clips of the synthetic benchmark as video files
page         the elements of the page and their events (Gradio)
server       admits requests from outside, of known routes and limited size
connections  ends connections of visitors who stop sending
uploads      removes incomplete uploads, and measures the stored files
folder       the temporary folder of uploads and answers
"""
