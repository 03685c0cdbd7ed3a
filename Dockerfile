FROM python:3.13-slim
WORKDIR /app
COPY requirements.txt .
# All but the test tools, which stand below the comment line.
RUN sed '/^# for test_main/,$d' requirements.txt > /tmp/image.txt \
    && pip install --no-cache-dir --disable-pip-version-check --requirement /tmp/image.txt \
    && useradd --system --no-create-home --uid 10001 rewrap
COPY main.py backends.py ./
COPY extras extras
USER 10001
ENV HOST=0.0.0.0 PORT=8000 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/health', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["python", "main.py"]
