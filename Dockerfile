# The demo, without a network once it is built: docker build -t dovit . && docker run --network none -v "$PWD/out:/out" dovit
FROM python:3.12-slim
WORKDIR /dovit
COPY . .
RUN pip install --no-cache-dir '.[cpu,video,report]' ./models/road-small
RUN python -m dovit_scenes street.mp4 --frames 90 --seed 7 --size 640x360 --fps 15 --overwrite
CMD ["dovit", "run", "street.mp4", "-o", "/out/street", "--save", "overlay,tokens", "--overwrite"]
